"""A real etcd and kube-apiserver on loopback. No controller and no node runs: a Deployment gets no Pods."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

READY_SECONDS = 90


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class ControlPlane:
    """Both servers run until the end of the block. Their flags are those of tests/it/support/control_plane."""

    def __init__(self, binaries):
        self.binaries = Path(binaries)
        self.folder = Path(tempfile.mkdtemp(prefix="deploy-"))
        self.servers = []

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for server in reversed(self.servers):
            server.kill()
            server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self):
        folder, etcd, peer, self.port = self.folder, free_port(), free_port(), free_port()
        (folder / "users.csv").write_text('admin-token,admin,1,"system:masters"\n')
        for command in (
            ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", folder / "account.key"],
            ["pkey", "-in", folder / "account.key", "-pubout", "-out", folder / "account.pub"],
        ):
            subprocess.run(["openssl", *command], check=True, stderr=subprocess.DEVNULL)
        self.serve(
            "etcd",
            f"--data-dir={folder}/etcd",
            "--name=test",
            f"--initial-cluster=test=http://127.0.0.1:{peer}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--listen-client-urls=http://127.0.0.1:{etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            "--unsafe-no-fsync",
        )
        self.serve(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--cert-dir={folder}/certificates",
            "--advertise-address=10.0.0.1",
            "--service-cluster-ip-range=10.0.0.0/24",
            f"--token-auth-file={folder}/users.csv",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={folder}/account.key",
            f"--service-account-key-file={folder}/account.pub",
        )
        self.kubeconfig = self.kubeconfig_of("admin-token")
        end = time.monotonic() + READY_SECONDS
        while True:
            found = subprocess.run(
                [self.binaries / "kubectl", "get", "--raw", "/readyz"],
                env=self.environment(),
                capture_output=True,
                text=True,
            )
            if found.returncode == 0:
                return
            assert all(server.poll() is None for server in self.servers) and time.monotonic() < end, found.stderr
            time.sleep(0.2)

    def serve(self, name, *flags, binaries=None):
        with (self.folder / f"{name}.log").open("w") as log:
            command = [Path(binaries or self.binaries, name), *flags]
            self.servers.append(subprocess.Popen(command, stdout=log, stderr=log))

    def kubeconfig_of(self, token):
        path = Path(tempfile.mkstemp(suffix=".kubeconfig", dir=self.folder)[1])
        server = {
            "server": f"https://127.0.0.1:{self.port}",
            "certificate-authority": f"{self.folder}/certificates/apiserver.crt",
        }
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
        }))  # fmt: skip
        return path

    def environment(self, kubeconfig=None):
        folders = {
            name: str(self.folder / "helm") for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")
        }
        return {
            **os.environ,
            **folders,
            "KUBECONFIG": str(kubeconfig or self.kubeconfig),
            "KUBECACHEDIR": f"{self.folder}/cache",
        }
