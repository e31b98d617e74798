"""Who is told of what changed on the fleet, and what they know already."""
