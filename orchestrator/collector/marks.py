"""Lines of the output that are for whoever reads it; here, so that a reader need not import all that looks."""

BEGIN, END = "---- kvmfleet evidence ----", "---- end of kvmfleet evidence ----"
STEP = "---- kvmfleet step: "
