"""What pages with containers need: the Docker Engine of the tests' own, and a base image in it."""

from __future__ import annotations

from docker_parts import docker_daemon, docker_engine, test_base

__all__ = ["docker_daemon", "docker_engine", "test_base"]
