"""Training of any kind of model: the loop, one step of it, its clock, its optimizers and its report."""
