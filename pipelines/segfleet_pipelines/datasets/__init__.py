"""Layouts of raw datasets: what each is called, where its pictures are, which labels its masks hold."""
