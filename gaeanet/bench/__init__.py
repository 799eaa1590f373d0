"""`gaeanet bench`: what each stage of training takes on this machine."""
