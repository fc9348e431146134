"""Networks of public zoos: how far the channel graph reaches."""

import sys
import types

# torchvision's compiled operators are built for another torch than the CPU's: it is imported without them
_extension = types.ModuleType("torchvision.extension")
vars(_extension).update(_HAS_OPS=False, _has_ops=lambda: False)
for _name in ("_assert_has_ops", "_check_cuda_version", "_load_library"):
    setattr(_extension, _name, lambda *_: 0)
sys.modules.setdefault("torchvision.extension", _extension)
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
