"""Download: fetches the image of each row of a list, or records the reason why it has none."""

from stages.download.stage import DownloadConfig, DownloadStage

__all__ = ["DownloadConfig", "DownloadStage"]
