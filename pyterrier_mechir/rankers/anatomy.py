"""The table of architectures and what is made of it, under the name that error messages give."""

from pyterrier_mechir.models.anatomy import Anatomy as Anatomy
from pyterrier_mechir.models.anatomy import Port as Port
from pyterrier_mechir.models.architectures import ARCHITECTURES as ARCHITECTURES
from pyterrier_mechir.models.architectures import Architecture as Architecture
