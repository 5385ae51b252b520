"""Who may take part in a deployment: the authority, its invitations, and permissions to upload."""
