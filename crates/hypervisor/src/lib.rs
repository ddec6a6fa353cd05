//! A running guest by QMP: inspect, pause guard, capture, undo, launch.
