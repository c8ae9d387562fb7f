# Two stages: everything that builds stays in the first; the second holds the two binaries, their
# libraries and nothing that compiles. Runs as an unprivileged user.
FROM docker.io/library/debian:bookworm AS build
WORKDIR /src
COPY scripts/setup.sh scripts/requirements.txt scripts/requirements-cuda.txt scripts/
RUN scripts/setup.sh --build
COPY . .
RUN cmake --preset release && cmake --build --preset release --target babai-server babai && \
    scripts/bundle.sh release /out && \
    site=$(echo .venv/lib/python3*/site-packages) && \
    cp $site/torch/lib/libtorch_cpu.so $site/torch/lib/libc10.so $site/torch/lib/libgomp.so.1 /out/lib/ && \
    cp $site/nvidia/cu13/lib/libcudart.so.13 $site/nvidia/cu13/lib/libcupti.so.13 /out/lib/

FROM docker.io/library/debian:bookworm-slim
RUN useradd --system --uid 10001 --home-dir /data --create-home babai && mkdir -p /models
COPY --from=build /out/bin/ /usr/local/bin/
COPY --from=build /out/lib/ /usr/local/lib/babai/
COPY LICENSE /usr/share/doc/babai/LICENSE
ENV LD_LIBRARY_PATH=/usr/local/lib/babai
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
# Without credentials the service answers on loopback only; publish it through a proxy in the same network
# namespace, or pass --insecure_listen_anywhere yourself on a network you trust.
ENTRYPOINT ["/usr/local/bin/babai-server"]
CMD ["--listen", "127.0.0.1:50051", "--metrics_listen", "127.0.0.1:9464", "--data_dir", "/data", "--model_roots", "/models"]
