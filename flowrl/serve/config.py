"""The configuration of a reward server: `rewards` as in a recipe, and `serve`. A whole recipe works, too."""

import ipaddress
import os
import socket
from pathlib import Path

from pydantic import ValidationError

from flowrl import names
from flowrl.names import UserError
from flowrl.recipe.base import Strict, key, part
from flowrl.recipe.checks.recipe import check_reward
from flowrl.recipe.errors import RecipeError, first_of, translate, unknown_key
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.recipe.load import parse
from flowrl.recipe.schema import Recipe

MIN_TOKEN_LENGTH = 16  # characters


class ServeSection(Strict):
    """Where the server listens, and its limits.

    token_env: the environment variable that holds the token which requests must carry; required unless host is a
    loopback address. workers: processes, each with all rewards. queue: requests that may wait besides those being
    scored; further ones are asked to retry. device: of rewards with weights that do not name one. timeout: seconds that
    a request may wait, and that scoring it may take. max_bytes, max_items and max_pixels: of one request; pixels are
    summed over its pictures and frames. max_connections: of one address; a further one replaces an idle one.
    """

    host: str = key("127.0.0.1", "an address or name of this machine", min_length=1)
    port: int = key(8471, "a whole number in [0, 65535], 0 takes a free one", ge=0, le=65535)
    token_env: str | None = key(None, "the name of an environment variable or null", pattern=r"^[A-Za-z_]\w*$")
    workers: int = key(1, "a whole number >= 1", ge=1)
    queue: int = key(16, "a whole number >= 0", ge=0)
    device: str = key("auto", "auto, cpu, mps, cuda or cuda:N", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    timeout: float = key(120.0, "a number > 0", gt=0)
    max_bytes: int = key(64 * 2**20, "a whole number >= 1024", ge=1024)
    max_items: int = key(256, "a whole number >= 1", ge=1)
    max_pixels: int = key(64 * 2**20, "a whole number >= 1", ge=1)
    max_connections: int = key(64, "a whole number >= 1", ge=1)


class ServerConfig(Strict):
    """A configuration file for `flowrl serve-rewards`."""

    rewards: dict[str, RewardSpec] = key(..., "names mapped to {use, args, batch, device, ...}", min_length=1)
    serve: ServeSection = part(ServeSection)


def load(path_or_name: str, **changes: object) -> ServerConfig:
    """The checked configuration in a file, or the rewards of a recipe; changes (None: unchanged) override `serve`.

    Raises RecipeError, in one line.
    """
    path = names.recipes().get(path_or_name) or Path(path_or_name).expanduser()
    if not path.is_file():
        raise RecipeError("config", f"got {path_or_name!r}, accepted: a YAML file or a recipe", "give its path")
    values = parse(path)
    for name in values:
        if name not in ServerConfig.model_fields and name not in Recipe.model_fields:
            raise unknown_key(name, list(ServerConfig.model_fields))
    serve = values.get("serve") or {}
    if isinstance(serve, dict):
        serve = serve | {name: value for name, value in changes.items() if value is not None}
    try:
        config = ServerConfig.model_validate({"rewards": values.get("rewards"), "serve": serve})
    except ValidationError as error:
        raise translate(error, ServerConfig) from None
    if errors := [error for name, spec in config.rewards.items() for error in check_reward(name, spec)]:
        raise first_of(errors)
    return config


def read_token(serve: ServeSection) -> str | None:
    """The token that requests must carry, or None. Raises RecipeError if one is required but missing or too short."""
    if serve.token_env is None:
        if not is_loopback(serve.host):
            problem = f"missing, but {serve.host} can be reached from other machines"
            raise RecipeError("serve.token_env", problem, "set it to the environment variable that holds a token")
        return None
    token = os.environ.get(serve.token_env, "")
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        problem = f"{serve.token_env} does not hold a token of at least {MIN_TOKEN_LENGTH} printable ASCII characters"
        raise RecipeError("serve.token_env", problem, f"export {serve.token_env}=$(openssl rand -hex 24)")
    return token


def is_loopback(host: str) -> bool:
    """Whether every address of a host is a loopback address."""
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in _addresses(host))


def open_socket(serve: ServeSection) -> socket.socket:
    """A listening socket. Raises UserError if the address is in use or not this machine's."""
    family, _, _, _, address = _addresses(serve.host, serve.port)[0]
    try:
        return socket.create_server(address[:2], family=family, backlog=512)
    except OSError as error:
        where = f"{serve.host}:{serve.port}"
        raise UserError(f"serve.port: {where} cannot be used ({error.strerror}); give another port, or 0") from error


def _addresses(host: str, port: int = 0) -> list[tuple]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RecipeError("serve.host", f"got {host!r}, which has no address ({error})", "give another host") from None
