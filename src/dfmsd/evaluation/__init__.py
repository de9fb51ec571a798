"""COCO metrics of a detector, and its detections in images and videos."""
