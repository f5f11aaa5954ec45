"""`flowrl serve-policy`: a language model behind an OpenAI-compatible endpoint."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from flowrl.commands.common import (
    Overrides,
    RawOption,
    RunArgument,
    TrustOption,
    WeightsOption,
    resolve_target,
    silence_libraries,
)
from flowrl.kinds import kind_of
from flowrl.names import UserError

if TYPE_CHECKING:
    from flowrl.policies.language.policy import LanguagePolicy

PORT = 8000  # as vLLM's


def serve_policy_command(
    target: RunArgument,
    overrides: Overrides = None,
    weights: WeightsOption = "final",
    raw: RawOption = False,
    trust: TrustOption = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 chooses a free one.")] = PORT,
    name: Annotated[
        str | None, typer.Option(help="Name of the model in requests (default: the recipe's model).")
    ] = None,
    updates: Annotated[
        bool, typer.Option("--updates", help="Load weights from folders that requests name, for training.")
    ] = False,
    batch: Annotated[
        int,
        typer.Option(min=1, help="Simultaneous completions that are generated together; 1: the same bits at any load."),
    ] = 1,
    token_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with the token that requests must carry.")
    ] = None,
) -> None:
    """Serve a language model over HTTP: completions, chats, token ids and log-probs. Ends on Ctrl-C or SIGTERM."""
    recipe, run = resolve_target(target, overrides or [], weights, raw, trust)
    if not kind_of(recipe).texts:
        raise UserError(f"{target}: its samples are no texts; give the recipe or run of a language model")
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"serve-policy: {error.name} is missing; pip install 'flowrl-toolkit[serve]'") from None
    from flowrl.serve.config import ServeSection, open_socket, read_token

    section = ServeSection(host=host, port=port, token_env=token_env)
    token = read_token(section)
    silence_libraries()
    with open_socket(section) as listening:
        from flowrl.build import build_policy, set_up
        from flowrl.engines.app import build_app
        from flowrl.engines.run import serve
        from flowrl.engines.service import PolicyService
        from flowrl.planning.costs import plan_for
        from flowrl.runs.weights import load_weights

        set_up(recipe)
        policy = cast("LanguagePolicy", build_policy(recipe))
        if run is not None:
            load_weights(policy, run, weights, raw)
        service = PolicyService(policy, name or recipe.model, plan_for(recipe, 0), updates=updates, batch=batch)
        at, number = listening.getsockname()[:2]
        typer.echo(f"serving {service.name} at http://{f'[{at}]' if ':' in at else at}:{number}/v1")
        serve(build_app(service, token), listening)
