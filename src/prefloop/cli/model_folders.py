"""Where the model of a run is."""

from pathlib import Path

from prefloop.errors import RunError
from prefloop.runs.folder import RunFolder


def model_folder(place: str) -> str:
    """The final/ of a run folder; a model folder or a Hub name as it is.

    Raises RunError for a pipeline, which has several models, and for a run without one.
    """
    path = Path(place)
    if (path / "pipeline.json").exists():
        stages = sorted(one.name for one in path.iterdir() if (one / "final").is_dir() and one.name[0] != ".")
        known = ", ".join(str(path / stage) for stage in stages)
        raise RunError(
            f"{place} is a whole pipeline: name one of its models, {known}"
            if stages
            else f"the pipeline in {place} has trained no model yet: finish it first with "
            f"prefloop run {path / 'config.yaml'} --output {path}"
        )
    if not (path / "run.json").exists():
        return place
    run = RunFolder(path)
    if (path / "final").is_dir() and run.is_finished:
        return str(path / "final")
    if run.is_finished:
        raise RunError(f"{place} is a run of kind {run.algorithm}, which leaves no model")
    raise RunError(
        f"the run in {place} is {run.state} and not finished, so it has no model yet: "
        "go on with the command that began it"
    )
