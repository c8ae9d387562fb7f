#!/usr/bin/env python3
"""Who may include whom, and which outside library may be named where. Run by ctest.

Each folder of the tree is a rung; a rung sees only the rungs listed for it. One vendor, one place: gRPC
and Protobuf in proto, server/rpc and client, LibTorch in server/quant and server/model, and so on.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()

ALLOWED = {  # folder: the folders whose headers it may include, besides its own
    "kernels/formats": [],
    "kernels/cpu": ["kernels/formats"],
    "kernels/cuda": ["kernels/formats"],
    "server/reason": [],
    "server/model": ["server/reason", "kernels/formats"],
    "server/text": ["server/reason", "server/model"],
    "server/store": ["server/reason", "server/model", "kernels/formats"],
    "server/quant": ["server/reason", "server/model", "kernels/formats", "kernels/cpu", "kernels/cuda"],
    "server/engine": ["server/reason", "server/model", "server/text", "server/store", "kernels/formats",
                      "kernels/cpu", "kernels/cuda"],
    "server/jobs": ["server/reason", "server/model", "server/text", "server/store", "server/quant",
                    "server/engine", "kernels/formats", "kernels/cpu"],
    "server/http": ["server/reason", "server/jobs", "server/engine", "server/store"],
    "server/rpc": ["server/reason", "server/jobs", "server/engine", "server/store", "server/text",
                   "server/quant", "server/model", "server/http", "proto"],
    "server": ["server/rpc", "server/http", "server/jobs", "server/engine", "server/store", "server/reason"],
    "client": ["proto"],
}

VENDORS = {  # include prefix: the folders that may name it
    r"grpcpp/|grpc/|google/|babai/v1/|proto/babai/": ["server/rpc", "client", "server"],
    r"prometheus/": ["server/http"],
    r"ATen/|c10/|torch/": ["server/quant", "server/engine"],
    r"sqlite3\.h": ["server/jobs"],
    r"curl/": ["server/store"],
    r"openssl/": ["server/store", "server/model", "server/rpc", "server/jobs"],
    r"cuda|cublas": ["kernels/cuda", "server/engine", "server/quant"],
    r"nlohmann/": ["server/model", "server/store", "server/quant", "server/jobs", "server/rpc", "client", "server/engine"],
    r"CLI/": ["server", "client"],
}


def folder_of(path):
    parts = path.relative_to(ROOT).parts
    for depth in (2, 1):
        name = "/".join(parts[:-1][:depth])
        if name in ALLOWED:
            return name
    return None


def included_folder(include):
    parts = include.split("/")
    for depth in (2, 1):
        name = "/".join(parts[:-1][:depth])
        if name in ALLOWED or name == "proto":
            return name
    return None


def main():
    errors, files = [], 0
    for top in ("kernels", "server", "client"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.suffix not in (".h", ".cc", ".cu", ".cuh"):
                continue
            folder = folder_of(path)
            if folder is None:
                errors.append(f"{path.relative_to(ROOT)}: in a folder without an include rule")
                continue
            files += 1
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                match = re.match(r'\s*#\s*include\s+([<"])([^>"]+)[>"]', line)
                if not match:
                    continue
                where = f"{path.relative_to(ROOT)}:{number}"
                other = included_folder(match[2]) if match[1] == '"' else None
                if other and other != folder and other not in ALLOWED[folder]:
                    errors.append(f"{where}: {folder} must not include {other} ({match[2]})")
                for prefix, places in VENDORS.items():
                    if re.match(prefix, match[2]) and folder not in places:
                        errors.append(f"{where}: {match[2]} belongs in {', '.join(places)}")
    print("\n".join(errors) or f"{files} files follow the include rules")
    if not files:
        sys.exit("no files found: wrong root?")
    sys.exit(1 if errors else 0)


main()
