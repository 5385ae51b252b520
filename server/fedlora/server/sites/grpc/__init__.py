"""The run over gRPC: the Grid, and the services on the port."""
