"The methods: each module of this folder registers what it has in `mmlit.learner.METHODS`, so a new one is found."

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__): import_module(f"{__name__}.{_module.name}")
