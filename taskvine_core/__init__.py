"""taskvine_core"""
