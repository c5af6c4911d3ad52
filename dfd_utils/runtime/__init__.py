"""What any program of this kind needs: whole files, worker processes, devices. Knows no images."""
