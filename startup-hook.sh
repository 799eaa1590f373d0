# Runs in the cluster's task container before the experiment: adds what its image lacks. The image's own torch and
# torchvision stay as they are (--no-deps), since they are built for its drivers.
python3 -m pip install --quiet --disable-pip-version-check --no-deps \
  "timm==1.0.31" "safetensors==0.8.0" "huggingface-hub" "pydantic>=2.7,<3" "pydantic-core" "annotated-types" \
  "typing-inspection" "rich>=13"
