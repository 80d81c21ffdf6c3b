"""What a service of isolated calls consists of: jobs, their queue, their figures."""
