"""The service: HTTP routes, their guard, and the process that runs them beside the dispatcher."""
