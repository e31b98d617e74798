"""Labs: small fleets of throwaway hosts on this machine."""
