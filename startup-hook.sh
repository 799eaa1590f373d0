# Runs in the cluster's task container before the experiment: adds what its image lacks, and nothing where all is there.
# Exact versions, and --no-deps: the image's own torch and torchvision are built for its drivers and must stay.
python3 -m pip install --quiet --no-input --no-deps --disable-pip-version-check --root-user-action=ignore \
  timm==1.0.31 safetensors==0.8.0 obstore==0.11.1 \
  pydantic==2.14.4 pydantic-core==2.50.5 annotated-types==0.8.0 typing-inspection==0.4.5 typing-extensions==4.16.0 \
  rich==15.0.0 markdown-it-py==4.3.0 mdurl==0.1.2 pygments==2.21.0
