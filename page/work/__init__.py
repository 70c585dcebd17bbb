"""What the page does for users, without widgets: inspections, batches, repairs, recalibrations, trainings."""
