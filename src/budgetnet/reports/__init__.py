"""What run directories hold, as tables, figures and reports."""
