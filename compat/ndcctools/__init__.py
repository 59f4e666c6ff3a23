"""Import name of the published package. Other distributions may put their own parts under it."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
