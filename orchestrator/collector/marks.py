"""What is known to whoever reads the output or looks for what was left; here, so that nobody imports all that looks."""

BEGIN, END = "---- kvmfleet evidence ----", "---- end of kvmfleet evidence ----"
STEP = "---- kvmfleet step: "
PREFIX = "kvmfleet-proof-"  # of the names of guests that boot for a proof, and of their files
