"""All tasks of the tutorials world, joined from the files by theme."""

from prefloop.worlds.tutorials.task import Task
from prefloop.worlds.tutorials.tasks_errands import ERRANDS_AND_TRAVEL
from prefloop.worlds.tutorials.tasks_garden import GARDEN_AND_ANIMALS
from prefloop.worlds.tutorials.tasks_home import HOME_AND_CRAFTS
from prefloop.worlds.tutorials.tasks_kitchen import KITCHEN

TASKS: tuple[Task, ...] = GARDEN_AND_ANIMALS + KITCHEN + HOME_AND_CRAFTS + ERRANDS_AND_TRAVEL
