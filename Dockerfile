# A task image with everything in it, so that trials start without a network: Determined's own image and its torch, what
# startup-hook.sh adds, and determined itself. Build it at the root of the project, then name it in the experiment file:
#
#   docker build -t REGISTRY/gaeanet . && docker push REGISTRY/gaeanet
#
#   environment:
#     image: REGISTRY/gaeanet
#     environment_variables: [DET_SKIP_PIP_INSTALL=1]
FROM determinedai/pytorch-ngc-dev:0736b6d
COPY startup-hook.sh /opt/gaeanet/startup-hook.sh
RUN python3 -m pip freeze | grep -iE '^(torch|torchvision|numpy)([ =@]|$)' > /opt/gaeanet/before \
 && sh /opt/gaeanet/startup-hook.sh \
 && python3 -m pip install --quiet --no-input --disable-pip-version-check "determined==0.38.1" \
 && python3 -m pip freeze | grep -iE '^(torch|torchvision|numpy)([ =@]|$)' | diff /opt/gaeanet/before - \
 && python3 -c "import determined.core, obstore, pydantic, rich, safetensors, timm, torch, torchvision"
