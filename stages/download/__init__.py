"""Download: each row of a list to its image, or to the reason why there is none."""

from stages.download.stage import DownloadConfig, DownloadStage

__all__ = ["DownloadConfig", "DownloadStage"]
