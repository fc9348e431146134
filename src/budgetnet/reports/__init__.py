"""Tables, figures and reports of run directories."""
