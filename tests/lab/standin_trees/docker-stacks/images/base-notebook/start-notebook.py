#!/usr/bin/python3
print("a stand-in")
