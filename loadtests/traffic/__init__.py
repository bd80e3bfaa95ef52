"""What is sent: one file a class of traffic, the texts they use, and how they speak HTTP."""
