"""Where the model of a run is."""

from pathlib import Path

from prefloop.errors import RunError


def model_folder(place: str) -> str:
    """The final/ of a run folder; a model folder or a Hub name as it is. Raises RunError for a run without a model."""
    path = Path(place)
    if (path / "final").is_dir():
        return str(path / "final")
    if (path / "pipeline.json").exists():
        stages = sorted(one.name for one in path.iterdir() if (one / "final").is_dir())
        raise RunError(
            f"{place} is a whole pipeline; name one of its models: {', '.join(f'{place}/{s}' for s in stages)}"
        )
    if (path / "run.json").exists():
        raise RunError(f"the run in {place} has not finished, so it has no model yet")
    return place
