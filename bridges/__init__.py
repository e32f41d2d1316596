"""Talk to the outside: the bus, in memory and over MQTT, its wire format, and a broker to run it on."""

from bridges.broker import EmbeddedBroker as EmbeddedBroker
from bridges.broker import NoBroker as NoBroker
from bridges.bus import Bus as Bus
from bridges.bus import BusUnreachable as BusUnreachable
from bridges.bus import Message as Message
from bridges.instruction import to_instruction as to_instruction
from bridges.instruction import to_message as to_message
from bridges.memory import MemoryBus as MemoryBus
from bridges.memory import MemoryHub as MemoryHub
from bridges.mqtt import MqttBus as MqttBus
from bridges.publisher import Publisher as Publisher
from bridges.publisher import last_will as last_will
from bridges.wire import BadMessage as BadMessage
