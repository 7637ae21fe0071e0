def write_formats(save, write, picture):
    pass
