"""Every attribute that PAD sets on objects, classes and methods of vLLM's: all begin with `pad`.

A table to read; no code uses it but a test, which compares it with the package. Besides, a forked Attention
has a second one in its attribute `reward` (engines/shared/model_fork.py), and modules of a model get
another class with the same methods and more (engines/override_methods.py).
"""

from __future__ import annotations

from typing import NamedTuple


class PADAttribute(NamedTuple):
    """One attribute."""

    name: str
    set_on: str
    """The class of vLLM's, or the object, that has it."""

    set_in: str
    """The file of pad_vllm that sets it; for a model's, where its name is declared."""

    read_in: str
    """The files that read it, or what calls it."""

    purpose: str


_FRONT_END = (
    PADAttribute(
        name="pad_config_check",
        set_on="InputProcessor, the class",
        set_in="vllm_api/patches/front_end_checks.py",
        read_in="the same file, where vLLM makes an InputProcessor",
        purpose="checks a front end's config, and returns the check of its requests",
    ),
    PADAttribute(
        name="pad_admission",
        set_on="an InputProcessor",
        set_in="vllm_api/patches/front_end_checks.py",
        read_in="the same file, at every request, and vllm_api/patches/server_routes.py",
        purpose="the check of this front end's requests; without it the engine does not use PAD",
    ),
    PADAttribute(
        name="pad_adapters",
        set_on="an InputProcessor",
        set_in="vllm_api/patches/front_end_checks.py",
        read_in="vllm_api/patches/lora_endpoints.py",
        purpose="the adapters that clients load and unload at run time",
    ),
    PADAttribute(
        name="pad_request_check",
        set_on="ChatCompletionRequest, CompletionRequest and ResponsesRequest, the classes",
        set_in="vllm_api/patches/server_request_check.py",
        read_in="the same file, before vLLM makes sampling parameters of a request",
        purpose="finds pad_ arguments that a client put in the wrong place",
    ),
    PADAttribute(
        name="pad_body_check",
        set_on="the classes that answer the routes in _HANDLERS, such as AnthropicServingMessages",
        set_in="vllm_api/patches/server_request_check.py",
        read_in="the same file, before the class answers a request",
        purpose="the same, in the JSON of routes that ignore unknown fields",
    ),
    PADAttribute(
        name="pad_chat_listener",
        set_on="OpenAIServingChat, the class",
        set_in="vllm_api/patches/answered_chats.py",
        read_in="the same file, where the class has answered a request",
        purpose="has the conversations of users read, where the operator switched that on",
    ),
    PADAttribute(
        name="pad_in_flight",
        set_on="an LLMEngine",
        set_in="vllm_api/patches/outcome_rpc.py",
        read_in="the same file, at every step",
        purpose="the guided requests that have not ended, by request id",
    ),
    PADAttribute(
        name="pad_outcome_fetcher",
        set_on="an AsyncLLM",
        set_in="vllm_api/patches/outcome_rpc.py",
        read_in="the same file, where an answer ends",
        purpose="fetches the outcomes of answers that end together in one call",
    ),
    PADAttribute(
        name="pad_finished_outcomes",
        set_on="the conversation context of a request to the responses API",
        set_in="vllm_api/patches/response_fields.py",
        read_in="the same file, where the response is made",
        purpose="outcomes of the outputs that only this context sees",
    ),
    PADAttribute(
        name="pad",
        set_on="a RequestOutput, and a response of the server",
        set_in="vllm_api/patches/outcome_rpc.py and response_fields.py",
        read_in="clients, and vllm_api/patches/response_fields.py",
        purpose="what happened to a guided answer (guidance_outcome.Outcome); public",
    ),
    PADAttribute(
        name="pad_wrappers",
        set_on="each method that wrap_method replaces, and register_generate_api_routers",
        set_in="vllm_api/patches/wrap_method.py",
        read_in="the same file",
        purpose="the wrappers that it already has, so that none is applied twice",
    ),
)

_ENGINE_CORE = (
    PADAttribute(
        name="pad_num_reserved",
        set_on="SchedulerConfig, the class",
        set_in="vllm_api/patches/reserved_blocks.py",
        read_in="the same file, where vLLM makes a scheduler",
        purpose="how many KV blocks instructions have",
    ),
)

_WORKER = (
    PADAttribute(
        name="pad_outcomes",
        set_on="WorkerBase, the class",
        set_in="vllm_api/patches/outcome_rpc.py",
        read_in="a front end, by collective_rpc",
        purpose="returns the outcomes of answers that ended, and counts for /metrics",
    ),
    PADAttribute(
        name="pad_add_adapter",
        set_on="WorkerBase, the class",
        set_in="serving/start/served_adapters.py and serving/worker/runtime_adapter_updates.py",
        read_in="a front end, by collective_rpc (serving/frontend/adapter_registry.py)",
        purpose="loads an adapter at run time",
    ),
    PADAttribute(
        name="pad_drop_adapter",
        set_on="WorkerBase, the class",
        set_in="serving/start/served_adapters.py and serving/worker/runtime_adapter_updates.py",
        read_in="a front end, by collective_rpc (serving/frontend/adapter_registry.py)",
        purpose="removes an adapter at run time",
    ),
)

_MODEL = (
    PADAttribute(
        name="pad_rewards",
        set_on="the served model",
        set_in="engines/shared/model_fork.py and serving/worker/model_loader.py",
        read_in="engines/shared/model_fork.py, in compute_logits",
        purpose="the model owns its reward engine: serving/worker/instance.py has a weak reference",
    ),
    PADAttribute(
        name="pad_instance",
        set_on="the served model",
        set_in="serving/worker/model_loader.py",
        read_in="never: it keeps the object alive",
        purpose="what a process holds of an instance lives as long as its model",
    ),
    PADAttribute(
        name="pad_streams",
        set_on="the served model of the shared engine; a method",
        set_in="engines/shared/model_fork.py",
        read_in="the same file, in compute_logits, and vllm_api/patches/drafter_states.py",
        purpose="splits hidden states into those of the base and those of the reward model",
    ),
    PADAttribute(
        name="pad_prefix_table",
        set_on="an Attention of the reward stream, where it reads instructions",
        set_in="engines/shared/model_fork.py",
        read_in="vllm_api/prefixed_attention.py and instruction_forward.py",
        purpose="says which KV blocks a row reads in front of its own",
    ),
    PADAttribute(
        name="pad_on_slot_freed",
        set_on="the served model of the shared engine with instructions; a method",
        set_in="engines/shared/model_fork.py",
        read_in="vllm_api/removed_requests.py",
        purpose="V2: a request left its batch slot, and needs its instruction no more",
    ),
    PADAttribute(
        name="pad_head_A, pad_head_B, pad_head_C, pad_head_G",
        set_on="the served model of the shared engine; buffers",
        set_in="engines/shared/model_fork.py",
        read_in="vLLM, which keeps a model's buffers while it sleeps",
        purpose="the preference heads",
    ),
    PADAttribute(
        name="pad_A_t, pad_B_t",
        set_on="linear layers of the served model of the shared engine; buffers",
        set_in="engines/reward_lora.py",
        read_in="the same file, in forward",
        purpose="the trunk LoRA of the layer, transposed once",
    ),
    PADAttribute(
        name="pad_fed_token_receiver",
        set_on="the served model of the resident and ray engines",
        set_in="engines/token_columns.py",
        read_in="the same file, in compute_logits",
        purpose="receives the token and position of each logits row",
    ),
    PADAttribute(
        name="pad_on_forward_start",
        set_on="the served model of the resident and ray engines",
        set_in="engines/token_columns.py",
        read_in="the same file, in forward",
        purpose="begins remote work as the base's forward starts",
    ),
    PADAttribute(
        name="pad_packed",
        set_on="nn.Linear layers of the reward model that PAD loads itself on a CPU",
        set_in="engines/reward_model/packed_cpu_linear.py",
        read_in="the same file, in forward",
        purpose="the weight, packed once for oneDNN",
    ),
)

ATTRIBUTES = (*_FRONT_END, *_ENGINE_CORE, *_WORKER, *_MODEL)
"""All of them, by the process that has them."""
