"""Serves several replicas of one vLLM with PAD behind one endpoint, on Ray Serve.

    python examples/ray_serve.py smollm2-135m --adapter demo --replicas 2 [--port 8000] \
        [--profiles postgresql://USER@HOST/DATABASE] [-- VLLM FLAGS]
    curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{
        "model": "smollm2-135m", "messages": [{"role": "user", "content": "Should I get a dog?"}],
        "vllm_xargs": {"pad_weights": "positive=1", "pad_beta": 0.4}}'

A request holds its own preference, so any replica can answer it. With --profiles it may name a user instead,
{"pad_user": "alice"}; a deployment of its own answers /v1/pad/users/alice, and what is posted there guides
the next requests of every replica. Replicas on one machine may share a file.

Needs ray[serve]; stops on Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.serving.launch.profile_app import profile_app
from pad_vllm.serving.launch.serve_arguments import serve_argv

FRONT_END = {"num_cpus": 0}  # it mostly waits; the cores or the GPU of a replica are for its engine


def engine_settings(argv: list[str]) -> dict[str, Any]:
    """The settings that `vllm serve` reads from this command line, without those at vLLM's defaults."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm flags", add_help=False))
    defaults = vars(parser.parse_args([]))
    settings = vars(parser.parse_args(argv))
    return {name: value for name, value in settings.items() if value != defaults[name]}


def share_of_a_replica(replicas: int) -> dict[str, Any]:
    """The resources that one replica reserves in the cluster, as arguments of LLMConfig."""
    if ray.cluster_resources().get("GPU"):
        return {}  # Ray reserves one GPU by default
    cores = max(1, int(ray.cluster_resources()["CPU"]) // replicas)
    # By default every replica binds its threads to the same cores, where they compete.
    environment = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores)),
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
    }
    return {
        "accelerator_config": {"kind": "cpu"},
        "placement_group_config": {"bundles": [{"CPU": cores}]},
        "runtime_env": {"env_vars": environment},
    }


def application(base: str, argv: list[str], replicas: int) -> tuple[str, serve.Application]:
    """The Serve application.

    Args:
        base: Name of the base, used where `argv` gives no served name.
        argv: Command line of `vllm serve`, as serve_argv writes it.
        replicas: Number of replicas.

    Returns:
        (name under which the model is served, the application).
    """
    settings = engine_settings(argv[1:])
    source = settings.pop("model_tag")
    name = settings.pop("served_model_name", [base])[0]
    config = LLMConfig(
        model_loading_config={"model_id": name, "model_source": source},
        engine_kwargs=settings,
        deployment_config={
            "num_replicas": replicas,
            "ray_actor_options": FRONT_END,
            # After three failed checks Serve replaces a replica. Until then requests may reach a dead engine.
            "health_check_period_s": 2,
        },
        **share_of_a_replica(replicas),
    )
    ingress = {"ray_actor_options": FRONT_END}
    return name, build_openai_app({"llm_configs": [config], "ingress_deployment_config": ingress})


def profile_application(adapter: str, profiles: str) -> serve.Application:
    """The routes of users, at /v1/pad; the database is opened where the deployment runs."""

    @serve.deployment(name="profiles", ray_actor_options=FRONT_END)
    @serve.ingress(lambda: profile_app({"adapter": adapter, "profiles": profiles}, prefix=""))
    class Profiles:
        pass

    return Profiles.bind()


def main() -> int:
    """Serves until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="a name of `pad-vllm models`, a folder or a hub name")
    parser.add_argument("--adapter", required=True, help="an adapter folder, or `demo`")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--profiles", help="database of users that all replicas share")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    # All arguments after `--` are for vLLM.
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:end])
    try:
        base, adapter = resolve_base(args.base), resolve_adapter(args.adapter)
        argv = serve_argv(base, adapter, sys.argv[end + 1 :], profiles=args.profiles)
    except ValueError as error:
        parser.error(str(error))

    ray.init()  # a new local cluster, or the one that RAY_ADDRESS names
    # Ray's own handler of SIGTERM leaves no time to shut down, so that some processes stay.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        name, app = application(args.base, argv, args.replicas)
        serve.start(http_options={"host": args.host, "port": args.port})
        if args.profiles:
            users = profile_application(adapter, args.profiles)
            serve.run(users, name="profiles", route_prefix="/v1/pad")
        serve.run(app)  # returns when every replica is healthy
        url = f"http://{args.host}:{args.port}/v1"
        print(f"{args.replicas} replicas of {name} answer at {url}", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        return 0
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
