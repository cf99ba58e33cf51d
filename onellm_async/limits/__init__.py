"""Admission: what decides when each request leaves. Knows numbers (cost, lane, deadline), never chats."""
