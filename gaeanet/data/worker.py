"""What the server of worker processes imports once for all of them."""

from gaeanet.startup import importing

with importing(torch=True):
    import gaeanet.data.loader

assert gaeanet.data.loader
