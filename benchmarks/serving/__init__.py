"""Load for services: requests that come when they come, who answers them, and how much of it is in time."""
