"""What a run leaves in MLflow. Importing this imports nothing heavy."""

from abstractinator.tracking.tracker import TRACKING_FOLDER, Tracker, start_tracking, ui_command

__all__ = ["TRACKING_FOLDER", "Tracker", "start_tracking", "ui_command"]
