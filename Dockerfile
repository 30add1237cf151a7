# rlgns with the agents, installed as the README says:
#   docker build -t rlgns .
#   docker run --rm -v "$PWD/runs:/work/runs" rlgns train atari --game breakout --wandb disabled
# With a GPU, add --gpus all. PyPI's torch brings CUDA along.
FROM python:3.11-slim
WORKDIR /opt/rlgns
COPY . .
RUN python3 -m venv .venv && .venv/bin/pip install --no-cache-dir -c constraints.txt -e '.[agents]'
ENV PATH=/opt/rlgns/.venv/bin:$PATH
WORKDIR /work
ENTRYPOINT ["rlgns"]
CMD ["--help"]
