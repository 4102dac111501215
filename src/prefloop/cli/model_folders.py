"""Where the model of a run is."""

from pathlib import Path

from prefloop.errors import RunError
from prefloop.runs.folder import RunFolder


def model_folder(place: str) -> str:
    """The final/ of a run folder; a model folder or a Hub name as it is.

    Raises RunError for a pipeline, which has several models, for a stage that it does not have, and for a run without a
    model.
    """
    path = Path(place)
    if (path / "pipeline.json").exists():
        known = _models_of(path)
        raise RunError(
            f"{place} is a whole pipeline: name one of its models, {known}"
            if known
            else f"the pipeline in {place} has trained no model yet: finish it first with "
            f"prefloop run {path / 'config.yaml'} --output {path}"
        )
    if not (path / "run.json").exists():
        if not path.exists() and (path.parent / "pipeline.json").exists():
            raise RunError(f"there is no stage {path.name} in {path.parent}: name one of {_models_of(path.parent)}")
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


def _models_of(pipeline: Path) -> str:
    """The models in a pipeline's folder, as a sentence lists them; empty when there is none."""
    stages = sorted(one.name for one in pipeline.iterdir() if (one / "final").is_dir() and one.name[0] != ".")
    return ", ".join(str(pipeline / stage) for stage in stages)
