"""Single files of the Hugging Face hub."""


def hub_file(repository: str, file: str, what: str, argument: str) -> str:
    """The local path of a file of the hub, downloaded once.

    Raises ValueError, naming `what` it is and the `argument` that takes a local path instead, where it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(repository, file)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{what}: {file} of {repository} is not to be had ({type(error).__name__}: {reason}); "
            f"download it and give its path as {argument}"
        ) from error
