"""The parent's side of one call."""

import logging

logging.getLogger("aioisolate").addHandler(logging.NullHandler())
