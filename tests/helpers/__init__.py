"""What several test files share; each module has one job."""
