"""What the server of worker processes imports once for all of them."""

from gaeanet.runtime.imports import importing

with importing(torch=True):
    import gaeanet.data.loading.loader

assert gaeanet.data.loading.loader
