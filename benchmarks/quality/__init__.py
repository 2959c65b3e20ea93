"""What guidance does to answers: wins by judges that trained nothing, against what it costs the text."""
