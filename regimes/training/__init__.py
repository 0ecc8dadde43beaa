"""Training one network: schedule, data order, SGD and SAM steps, snapshots."""
