"""Rewrites an image archive (`podman save`, `docker save`) with only what the Dockerfile says, so that the same program
gives the same image: engines add ids of their own, host names, versions and times.

    python3 scripts/plain-image.py FROM.tar TO.tar SECONDS_SINCE_1970
"""

import hashlib
import io
import json
import sys
import tarfile
import time

# Keys of the image's configuration that come from the Dockerfile (OCI image specification, config; HEALTHCHECK is Docker's).
FROM_DOCKERFILE = ("Entrypoint", "Healthcheck", "Labels", "User", "Volumes")


def add(archive: tarfile.TarFile, name: str, content: bytes, epoch: int, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(content), epoch, mode
    archive.addfile(member, io.BytesIO(content))


def plain_layer(layer: bytes, epoch: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(layer)) as source, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as plain:
        for member in sorted(source.getmembers(), key=lambda member: member.name):
            if member.isfile():
                add(plain, member.name, source.extractfile(member).read(), epoch, member.mode)
            elif member.isdir():
                folder = tarfile.TarInfo(member.name)
                folder.type, folder.mtime, folder.mode = tarfile.DIRTYPE, epoch, member.mode
                plain.addfile(folder)
            else:
                raise SystemExit(f"Error: the image holds {member.name}, which is neither a file nor a folder")
    return out.getvalue()


def main(source: str, target: str, epoch: int) -> None:
    with tarfile.open(source) as archive:
        (image,) = json.load(archive.extractfile("manifest.json"))
        config = json.load(archive.extractfile(image["Config"]))
        layers = [plain_layer(archive.extractfile(layer).read(), epoch) for layer in image["Layers"]]
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
    settings = {key: value for key, value in config["config"].items() if key in FROM_DOCKERFILE and value}
    settings["Labels"] = {key: value for key, value in settings["Labels"].items() if key.startswith("org.opencontainers.")}
    digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
    plain = {
        "architecture": config["architecture"],
        "config": settings,
        "created": created,
        "history": [{"created": created} for _ in layers],
        "os": config["os"],
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
    }
    text = json.dumps(plain, sort_keys=True).encode()
    name = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": image["RepoTags"], "Layers": [f"{digest}.tar" for digest in digests]}]
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as archive:
        for digest, layer in zip(digests, layers):
            add(archive, f"{digest}.tar", layer, epoch)
        add(archive, name, text, epoch)
        add(archive, "manifest.json", json.dumps(manifest).encode(), epoch)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
